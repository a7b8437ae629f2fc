"""The parts of the parameter database: contents of files, the folder of a name, metadata and its indexes."""
