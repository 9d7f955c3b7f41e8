"""`break_even="measured"`: which Linears int8 would make slower on this machine, by timing them once."""
