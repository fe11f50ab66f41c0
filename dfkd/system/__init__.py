"""What every room stands on: errors, files, locks, the device, the terminal."""
