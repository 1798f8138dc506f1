module benchmarks/go_gaio

go 1.21

require github.com/xtaci/gaio v1.2.34
