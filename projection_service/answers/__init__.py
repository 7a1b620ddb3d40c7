"""How questions are read, waited for, and answered, one kind after the other."""
