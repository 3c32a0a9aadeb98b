"""What runs beside the data. Everything secret lives here or in ``crypto``."""
