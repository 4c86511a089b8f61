"""Operations of the network: what they compute (plain torch) and which implementation is in use."""
