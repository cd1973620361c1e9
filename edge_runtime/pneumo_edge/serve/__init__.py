"""A device in a clinic: a page, an HTTP service and a DICOM node around one `Classifier`, with nothing lost.

cli starts web, node, judge and sender, which know the spool and the journal and never one another: a film that has
arrived is a row of the journal and a folder of the spool, and each part takes up what the one before it left there.
"""
