"""What requests and responses hold, whatever brings them."""
