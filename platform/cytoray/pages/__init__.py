"""The frame and the charts of the pages that people look at: data report, run card, assessment."""
