"""Makes `twistd caterwaul` and `twist caterwaul` known to Twisted."""

from twisted.application.service import ServiceMaker

caterwaul = ServiceMaker("Caterwaul", "caterwaul.cluster.tap", "A node of a cluster that replicates HTTP sessions in memory.", "caterwaul")
