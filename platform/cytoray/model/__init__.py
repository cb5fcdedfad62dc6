"""The transformer, and the bundle in which it is saved; independent of Ray and object stores."""
