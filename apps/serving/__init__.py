"""An embedding server that OpenAI's client can talk to."""
