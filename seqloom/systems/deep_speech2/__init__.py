"""Deep Speech 2: speech to characters with convolutions, recurrent layers and CTC."""
