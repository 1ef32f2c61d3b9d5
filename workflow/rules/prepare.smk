# Data: the normalised form of each data set, and the draws of training examples.


rule prepare_dataset:
    input:
        ancient(records_of),
    output:
        record=update("<results>/data/{dataset}-{digest}/record.json"),
    log:
        "<logs>/prepare_dataset/{dataset}-{digest}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        **ASKED,
        execution=execution_of,
    params:
        ticket=ticket_of,
    message:
        "Preparing {wildcards.dataset}"
    shell:
        "prepare_dataset.py --ticket {params.ticket:q} --inputs {input:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"


rule draw_subset:
    input:
        ancient(records_of),
    output:
        record=update("<results>/subsets/{dataset}/{size}-{digest}/record.json"),
    log:
        "<logs>/draw_subset/{dataset}/{size}-{digest}.log",
    localrule: True
    conda:
        "../../envs/environment.yaml"
    resources:
        execution=execution_of,
    params:
        ticket=ticket_of,
    message:
        "Drawing {wildcards.size} training examples of {wildcards.dataset}"
    shell:
        "draw_subset.py --ticket {params.ticket:q} --inputs {input:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"
