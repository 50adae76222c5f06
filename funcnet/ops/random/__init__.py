"""Operations that draw: dropout."""
