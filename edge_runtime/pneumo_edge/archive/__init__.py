"""An archive of films, far more than one machine judges in a night: a Parquet dataset, one row a film, made on Dask.

cli       options -> drive
drive     the one process that hands out parts and collects counts
work      what a worker does with a part: fetch, judge, write
plan      which film belongs to which part, on disk before anything is judged
listing   a folder, glob, URL or manifest -> its films
report    summary.json and report.html
counts    what many rows say together
schema    the columns of a row
places    files on any file system; writes that are whole or not there
"""
