"""Several runs: methods compared, tables of the paper, labels prepared for them."""
