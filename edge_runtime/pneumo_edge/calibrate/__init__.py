"""Calibration: of a model when it is trained, and of a finished bundle on the films of a new place (pneumo-calibrate).

NumPy and Pillow alone, so that it runs where the bundle runs.
"""
