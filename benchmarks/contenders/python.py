"""A process that does nothing: the limit of an import."""

PACKAGES = ()
IMPORT = ""
