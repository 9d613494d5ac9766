"""One HTML page about runs, that needs nothing beside it: `page.write_report`.

facts.py     what a run folder tells: settings, log, evaluation, environment, and what it lacks
settings.py  settings that differ from the named configuration, or between the runs
charts.py    curves as the numbers of an SVG, in colors that follow the page
pictures.py  validation images with truth and predictions, as data URIs
tables.py    tables with a column for each run
sections.py  the parts of the page, in its order
page.py      from run folders to the file
page.html, style.css    the template, filled by jinja2, which escapes every name
"""
