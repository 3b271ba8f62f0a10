"""`relaywave report`: a page about runs that people look at. It needs all other packages.

command.py        Options, and writing a report once or again and again
serve.py          Serves a report to browsers on this machine only
page.py           The page: one HTML file with everything in it but pictures and JSON
sections.py       The sections of the page, as HTML
charts.py         Charts: what plotly draws, and the JSON behind it
training_charts.py  Charts of training: losses, gradients, rates, where time goes
result_charts.py  Charts of results: metrics, sweeps, precision and recall, spectra
collect.py        Reads runs, results and spectra into plain values
real_images.py    Images of a run's training set, to look at beside its samples
"""
