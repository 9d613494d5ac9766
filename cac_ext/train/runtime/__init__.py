"""What any training program needs: processes, signals, seeds, files, precision, names."""
