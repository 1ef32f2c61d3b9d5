# Fine-tuning: one run of one method on one data set.


rule train_adapter:
    input:
        ancient(records_of),
    output:
        record=update("<results>/runs/{model}/{dataset}/{method}-{digest}/record.json"),
    log:
        "<logs>/train_adapter/{model}/{dataset}/{method}-{digest}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        **ASKED,
        execution=execution_of_training,
    params:
        ticket=ticket_of,
    message:
        "Tuning {wildcards.model} on {wildcards.dataset} with {wildcards.method}"
    shell:
        "exec train_adapter.py --ticket {params.ticket:q} --inputs {input:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"


# Where a study gives each method the same number of trials: the best of them, by validation loss.
rule choose_run:
    input:
        ancient(records_of),
    output:
        record=update(
            "<results>/runs/{model}/{dataset}/{method}.chosen-{digest}/record.json"
        ),
    log:
        "<logs>/choose_run/{model}/{dataset}/{method}-{digest}.log",
    localrule: True
    conda:
        "../../envs/environment.yaml"
    resources:
        execution=execution_of,
    params:
        ticket=ticket_of,
    message:
        "Choosing among trials of {wildcards.method} on {wildcards.dataset}"
    shell:
        "choose_run.py --ticket {params.ticket:q} --inputs {input:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"
