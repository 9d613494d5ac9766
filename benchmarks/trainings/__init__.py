"""What do unlabelled images bring, and by which method?"""
