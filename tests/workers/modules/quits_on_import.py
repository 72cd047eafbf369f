import sys

sys.exit("enough")
