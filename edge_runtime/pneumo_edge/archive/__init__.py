"""Judges an archive of films on Dask and writes a Parquet dataset with one row for each film.

cli       options -> drive
drive     the one process that hands out parts and collects counts
work      what a worker does with a part: it fetches, judges and writes
plan      which film belongs to which part; written before anything is judged
listing   a folder, glob, URL or manifest -> its films
report    summary.json and report.html
counts    sums over many rows
schema    the columns of a row
places    files on any file system, each whole or not there
"""
