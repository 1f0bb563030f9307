"""What comes out: measures of model quality."""
