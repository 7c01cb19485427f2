"""One handler per golden family; every module here registers its own with ``@handles``."""
