"""The two patches that come with the library; they are also the examples of the documentation."""
