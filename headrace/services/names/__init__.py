"""Where names are kept: in memory, in a folder, in Redis, in a Ray actor; and who keeps them alive."""
