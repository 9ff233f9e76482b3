"""One function a component: validates everything first, then works."""
