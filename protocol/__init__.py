"""What the parties agree on: plan, envelope, transport, transcript. Free of torch."""
