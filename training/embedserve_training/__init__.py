"""Training of image encoders on folders of unlabelled images, their evaluation and their export.

Three calls do the work, and the command line is made of them: ``run.run.run_training`` (images → run folder),
``evaluate.evaluate`` (run folder or encoder file → figures) and ``export.export.export`` (run folder → encoder file).
Importing this package imports no torch; the modules that compute do.
"""
