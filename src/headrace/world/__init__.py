"""The drawn scenes that training learns from and evaluation measures against."""
