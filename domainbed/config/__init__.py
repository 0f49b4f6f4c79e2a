"""What a user may set of a run, protocols, kinds of search dimension, facts of datasets."""
