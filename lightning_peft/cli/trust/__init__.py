"""What a recorded run or sweep may do without the user's word."""
