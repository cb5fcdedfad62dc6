"""Proteins predicted from RNA, and a joint embedding of both."""
