"""Sets of images to evaluate: directories, zips, tars, arrays, packed sets."""
