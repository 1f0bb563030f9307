"""The hot loops: a reference that reads like the formula beside each fast form."""
