"""What packing and evaluation list: the pictures, classes and splits in a directory or archive.

pictures.py   What is a picture: the files of a source as images, and what is left out, and why
classes.py    What is a class: from directories, numbers, or labels beside images
splits.py     Splits (train, val, ...) in names, and the choice of one
directory.py  Every file below a directory once, links followed
archives.py   Members of zips and tars, also behind links and behind the end of a first archive
"""
