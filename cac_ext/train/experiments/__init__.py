"""Work on whole configurations: runs compared, tables of the paper, labels prepared, data checked.

engine.py           planned runs, trained one after the other: records, results.json
compare.py          methods at equal iterations; methods.py names them
ablate.py           rows of the paper's tables (tables.py): our figures beside the paper's
prepare.py          pseudo labels that a run needs before it starts
context_figures.py  t-SNE and Grad-CAM of several runs
split_lists.py      lists of labelled images
data_report.py      all faults in the data
"""
