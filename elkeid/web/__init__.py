"""What all HTTP faces share: envelopes, signatures, schemas, errors to answers."""
