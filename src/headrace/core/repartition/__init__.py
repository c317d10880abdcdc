"""How a queue gets more or fewer partitions under live traffic with the order of every key kept.

``slots`` says which keys move between which partitions, ``holding`` which of them a partition holds back and until when, ``behind`` what an old
partition still has of them, ``change`` what the whole change does next. Pure: who asks whom, and how often, is the broker's business.
"""
