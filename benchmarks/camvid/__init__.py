"""What do unlabelled images bring on real data?"""
