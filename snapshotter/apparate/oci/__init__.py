"""What an image is: pure values, no I/O."""
