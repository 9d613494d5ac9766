"""How fast and how large is the loss alone, against what people use today?"""
