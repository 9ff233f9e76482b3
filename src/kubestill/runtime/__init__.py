"""What runs inside the containers: torch, no kfp."""
