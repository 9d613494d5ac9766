"""What does a whole training step cost, and which sizes still fit into memory?"""
