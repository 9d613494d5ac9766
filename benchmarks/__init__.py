"""Benchmarks of the fused loss and of the training around it: ``python -m benchmarks``.

From the bottom up; a module imports its own room and those below:

    errors.py arguments.py    what a user may ask, and what is refused
    cases.py operations.py    problem sizes, their inputs, and the arithmetic that they need
    implementations/          the losses that are compared, behind one interface
    measure/                  times, memory, the machine and its limits, result files
    loss/ step/ data/ convergence/ trainings/    one room for each question, which knows no other
    documents/                report, readme, plots, compare: what reads result files
    __main__.py               the command line
"""
