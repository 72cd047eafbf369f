raise ZeroDivisionError("division by zero")
