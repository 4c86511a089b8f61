"""The network itself and the plain generation loop."""
