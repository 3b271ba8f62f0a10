"""Sheets: pictures of samples to look at, each with a JSON of what it shows.

choose.py  Which images stand where: nearest neighbours, classes, equal seeds, realism
make.py    Make a sheet: features from the store, images chosen by them, picture and record
sheet.py   Draw a sheet of images in rows, and write it with its record
"""
