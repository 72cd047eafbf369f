"""Acts. One file for each long-lived task of the daemon; none imports another, they meet in `zkd.daemon`."""
